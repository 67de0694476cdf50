@with -f raw
read 0 512
@img convert -f raw -O raw blkdebug:rules:image out
@img compare -f raw -F raw blkdebug:rules:image image
@img dd -f raw -O raw if=blkdebug:rules:image of=out2 bs=4k
