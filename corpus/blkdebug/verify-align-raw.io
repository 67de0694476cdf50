@image raw 66048
@reference
@stderr
@options driver=blkverify,raw.driver=blkdebug,raw.align=4096,raw.image.driver=file,raw.image.filename=reference,test.driver=raw,test.file.filename=image
write 100 200
read 0 512
length
