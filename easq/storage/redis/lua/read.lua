-- flags: no-writes; after: context entries scans
-- Answers up to ARGV[5] items from index ARGV[4] on with the tags ARGV[6], of ARGV[7] bytes together, but one at least:
-- the index to go on from ('': at the end), the items as {index, tags, data}, and the number of puts and releases ever.

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
local most, bytes, size, full = tonumber(ARGV[5]), tonumber(ARGV[7]), 0, false
local frames = {}
local rest = scans.each(S, scans.start(S, ARGV[4]), tags_in(ARGV[6], 1), function(id)
  size = size + entries.size(S, id)
  if #frames > 0 and size > bytes then
    full = id
    return true
  end
  frames[#frames + 1] = scans.frame(S, id)
  return #frames >= most
end)
return {'ok', {full or rest, frames, arrivals(S)}}
