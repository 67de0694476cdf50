@stderr
@with -r
@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.take-child-perms.0=write
read 0 512
