@options driver=blkdebug,config=rules,image.filename=image,align=4096
read 1 1
write -P 9 100 100
write -P 9 0 100
write -P 8 5000 10000
write -z 1 1
