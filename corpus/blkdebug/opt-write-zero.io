@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.opt-write-zero=4096
write -z 1000 100
write -z 1000 20000
write -z 1000 20000
write -z 8k 4k
write -z -u 12k 5k
