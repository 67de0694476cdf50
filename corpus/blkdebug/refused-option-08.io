@stderr
@options driver=blkdebug,image.filename=image,max-discard=5,opt-discard=2
read 0 512
