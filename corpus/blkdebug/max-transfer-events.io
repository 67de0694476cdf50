@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.max-transfer=4096
write -P 5 0 12k
read 0 12k
