@reference
@stderr
@options driver=raw,file.driver=blkverify,file.raw.driver=blkdebug,file.raw.image.filename=reference,file.raw.inject-error.0.event=none,file.raw.inject-error.0.errno=28,file.test.driver=blkdebug,file.test.image.filename=image,file.test.inject-error.0.event=none
write 0 512
