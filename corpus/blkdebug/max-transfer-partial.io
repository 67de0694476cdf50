@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.max-transfer=1000
write -P 5 8k 8k
read -P 5 8k 1k
read 0 64k
