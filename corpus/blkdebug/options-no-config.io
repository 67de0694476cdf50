@options driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=image,file.inject-error.0.event=read_aio,file.inject-error.0.sector=2,file.inject-error.0.iotype=read,file.inject-error.0.immediately=on
read 0 512
read 0 2k
