@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=4096
write -P 9 100 100
write -P 9 4096 4096
write -P 8 5000 10000
write -P 7 8192 100
write -P 6 9000 7384
write -z 20000 100
write -z 30001 9000
read 0 512
