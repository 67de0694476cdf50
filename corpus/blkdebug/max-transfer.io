@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=512,file.max-transfer=2048
read 0 16k
read 0 16k
write -P 5 8k 8k
write -P 6 100 9000
read 0 1
