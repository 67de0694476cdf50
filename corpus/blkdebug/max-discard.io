@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.max-discard=8192
discard 0 8k
discard 8k 40k
