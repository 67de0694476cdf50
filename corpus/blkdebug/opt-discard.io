@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=512,file.opt-discard=4096
discard 0 4k
discard 4k 8k
discard 1k 20k
discard 100 200
discard 20000 10000
