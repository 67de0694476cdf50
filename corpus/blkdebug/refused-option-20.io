@stderr
@options driver=blkdebug,image.filename=image,inject-error.0.event=none,inject-error.0.once=maybe
read 0 512
