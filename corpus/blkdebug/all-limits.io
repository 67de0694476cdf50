@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=1024,file.max-transfer=4096,file.opt-write-zero=2048,file.max-write-zero=6144,file.opt-discard=3072,file.max-discard=9216
read 0 64k
write -P 1 500 33000
write -P 1 500 33000
write -z 700 40000
discard 900 50000
read 1 64000
