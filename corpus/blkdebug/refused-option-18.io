@stderr
@options driver=blkdebug,image.filename=image,take-child-perms=write
read 0 512
