@stderr
@options driver=blkdebug,image.filename=image,opt-write-zero=100,align=512
read 0 512
