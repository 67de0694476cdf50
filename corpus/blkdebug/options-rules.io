@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.inject-error.0.event=none,file.inject-error.0.errno=1,file.inject-error.0.once=on,file.inject-error.1.event=none
read 0 512
read 0 512
read 0 512
