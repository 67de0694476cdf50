@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=512,file.opt-write-zero=4096
write -z -n 0 8k
write -z -n 100 100
write -z -n 1k 8k
write -z -n 16k 5k
