@stderr
@options driver=blkdebug,image.filename=image,aling=4
read 0 512
