@stderr
@options driver=blkdebug,image.filename=image,config=nope
read 0 512
