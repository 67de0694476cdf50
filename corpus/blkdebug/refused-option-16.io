@stderr
@options driver=blkdebug,image.filename=image,inject-error=x
read 0 512
