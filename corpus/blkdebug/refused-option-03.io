@stderr
@options driver=blkdebug,image.filename=image,align=2147483648
read 0 512
