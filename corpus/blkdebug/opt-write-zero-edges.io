@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.opt-write-zero=4096,file.align=512
write -z 0 8k
write -z 4k 5k
write -z 1k 8k
write -z 1 1
