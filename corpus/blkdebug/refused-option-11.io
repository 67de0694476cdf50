@stderr
@options driver=blkdebug,image.filename=image,inject-error.1.event=none
read 0 512
