@options driver=raw,detect-zeroes=on,file.driver=blkdebug,file.config=rules,file.image.filename=image
write -P 0 0 4k
write -P 1 0 4k
