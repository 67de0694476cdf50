@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=4096
read 0 512
read 4k 512
write -P 9 100 100
write -P 8 5000 10000
write -z 20000 100
write -z 30001 9000
discard 4k 12k
read 8k 4k
