@reference
@stderr
@options driver=raw,file.driver=blkverify,file.test.driver=raw,file.test.file.filename=image,file.raw.driver=blkdebug,file.raw.image.filename=reference,file.raw.inject-error.0.event=none,file.raw.inject-error.0.errno=28
read 0 512
