@options driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=image,file.take-child-perms.0=write,file.take-child-perms.1=resize,file.unshare-child-perms.0=consistent-read,file.unshare-child-perms.1=write-unchanged
read 0 512
write 0 512
