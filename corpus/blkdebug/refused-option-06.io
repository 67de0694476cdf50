@stderr
@options driver=blkdebug,image.filename=image,max-write-zero=1000,opt-write-zero=3000
read 0 512
