@reference
@stderr
@options driver=raw,file.driver=blkverify,file.raw.driver=blkdebug,file.raw.image.filename=reference,file.raw.inject-error.0.event=none,file.raw.inject-error.0.once=on,file.test.driver=blkdebug,file.test.image.filename=image,file.test.inject-error.0.event=none,file.test.inject-error.0.once=on
write 0 512
write -P 3 0 512
read -P 3 0 512
