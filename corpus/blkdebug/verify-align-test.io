@image raw 66048
@reference
@options driver=blkverify,raw.driver=file,raw.filename=reference,test.driver=blkdebug,test.align=4096,test.image.driver=file,test.image.filename=image
write 100 200
read 0 512
length
