@image raw 66048
@stderr
@options driver=raw,file.driver=blkdebug,file.image.filename=image,file.align=4096
write 0 100
length
