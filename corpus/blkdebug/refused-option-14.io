@stderr
@options driver=blkdebug,image.filename=image,inject-error.0.event=bogus
read 0 512
