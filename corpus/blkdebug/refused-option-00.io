@stderr
@options driver=blkdebug,image.filename=image,align=3
read 0 512
