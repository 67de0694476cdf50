@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.align=1
read 0 512
read 511 2
read 512 1
