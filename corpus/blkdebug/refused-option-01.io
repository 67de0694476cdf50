@stderr
@options driver=blkdebug,image.filename=image,align=x
read 0 512
