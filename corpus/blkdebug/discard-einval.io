@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=512,file.opt-discard=4096
discard 1k 2k
discard 4k 4k
discard 1k 8k
