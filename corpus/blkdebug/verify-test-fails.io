@reference
@stderr
@options driver=raw,file.driver=blkverify,file.raw.filename=reference,file.test.driver=blkdebug,file.test.image.filename=image,file.test.inject-error.0.event=none,file.test.inject-error.0.iotype=write
read 0 4k
write 0 512
read 0 4k
