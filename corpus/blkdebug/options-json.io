@with -f raw
@name json:{"driver":"raw","file":{"driver":"blkdebug","align":512,"image":{"driver":"file","filename":"image"},"inject-error":[{"event":"none","errno":28,"once":true,"iotype":"read"},{"event":"none","sector":3}],"set-state":[{"event":"write_aio","state":1,"new_state":2}]}}
read 0 512
read 0 512
read 0 2k
write 0 4k
