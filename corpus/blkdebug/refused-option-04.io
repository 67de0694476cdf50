@stderr
@options driver=blkdebug,image.filename=image,max-transfer=1000,align=512
read 0 512
