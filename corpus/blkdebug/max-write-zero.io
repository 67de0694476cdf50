@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.opt-write-zero=4096,file.max-write-zero=8192
write -z 0 8k
write -z 4k 40k
write -z 100 10000
