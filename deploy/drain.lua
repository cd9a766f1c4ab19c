-- The service `lua.too_large`: answers 413, after it has read what the client sends.
--
-- A door that answers at once and closes resets the connection that the client still writes to, and
-- most clients then report a broken connection and never see the answer. So the body is read and
-- dropped. Only that of a client with a token, and none that is to be larger than this:

local MOST = 256 * 1024 * 1024
local PIECE = 65536
local BODY = '{"code":"too_large","message":"The request is larger than the door lets through '
    .. '(SCORING_MAX_REQUEST); send fewer rows at once.","field":null}'

core.register_service("too_large", "http", function(applet)
    local left = tonumber(applet.headers["content-length"][0])
    while left > 0 and left <= MOST do
        local piece = applet:receive(math.min(PIECE, left))
        if piece == nil or #piece == 0 then
            break
        end
        left = left - #piece
    end
    applet:set_status(413, "Request Entity Too Large")
    applet:add_header("content-type", "application/json")
    applet:add_header("content-length", tostring(#BODY))
    applet:start_response()
    applet:send(BODY)
end)
