@stderr
@options driver=blkdebug,image.filename=image,align=-1
read 0 512
