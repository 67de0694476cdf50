@stderr
@options driver=blkdebug,image.filename=image,take-child-perms.0=bogus
read 0 512
