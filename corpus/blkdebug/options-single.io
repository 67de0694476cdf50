@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.inject-error.event=none,file.inject-error.errno=28
read 0 512
