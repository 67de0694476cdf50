@stderr
@options driver=blkdebug,image.filename=image,opt-discard=1000,align=512
read 0 512
