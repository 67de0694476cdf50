@stderr
@options driver=blkdebug,image.filename=image,inject-error.0.evnt=x
read 0 512
