@options driver=raw,file.driver=blkdebug,file.image.filename=image,file.align=512
truncate 3000
length
truncate 128k
length
write -P 7 100 100
read -P 7 100 100
