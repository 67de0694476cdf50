@stderr
@options driver=blkdebug,image.filename=image,max-transfer=2147483647
read 0 512
