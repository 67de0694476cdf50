@stderr
@options driver=blkdebug,image.filename=image,inject-error.x.event=none
read 0 512
