@stderr
@options driver=blkdebug,image.filename=image,inject-error.0=x
read 0 512
